"""Reticle as a Conan package: conan create cmake/conan --build=missing."""

from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeDeps, CMakeToolchain, cmake_layout
from conan.tools.files import copy


class Reticle(ConanFile):
    name = "reticle"
    version = "0.1.0"
    description = "Mask algebra and sparse attention engine"
    license = "Apache-2.0"
    topics = ("attention", "sparse", "masks", "machine-learning")
    package_type = "library"
    settings = "os", "compiler", "build_type", "arch"
    options = {"shared": [True, False], "with_command": [True, False]}  # noqa: RUF012 - the form that Conan requires
    default_options = {"shared": True, "with_command": True}  # noqa: RUF012

    def export_sources(self):
        root = Path(self.recipe_folder).parents[1]
        for folder in ("core", "maskers", "attention", "tools", "cmake", "configs", "examples", "plugins"):
            copy(self, f"{folder}/*", root, self.export_sources_folder, excludes="*/__pycache__/*")
        for file in ("CMakeLists.txt", "LICENSE", "README.md"):
            copy(self, file, root, self.export_sources_folder)

    def requirements(self):
        self.requires("boost/[>=1.81]", transitive_headers=True, options={"header_only": True})
        self.requires("nlohmann_json/[>=3.11 <4]")
        self.requires("highway/[>=1.2 <2]")
        self.requires("openblas/[>=0.3.27]")
        if self.options.with_command:
            self.requires("cli11/[>=2.4 <3]")
            self.requires("fmt/[>=10 <12]")
            self.requires("stb/cci.20240531")

    def validate(self):
        check_min_cppstd(self, 20)

    def layout(self):
        cmake_layout(self)

    def generate(self):
        CMakeDeps(self).generate()
        toolchain = CMakeToolchain(self)
        toolchain.variables["BUILD_SHARED_LIBS"] = self.options.shared
        toolchain.variables["RETICLE_BUILD_CLI"] = self.options.with_command
        toolchain.variables["RETICLE_BUILD_TESTS"] = False
        toolchain.variables["RETICLE_CUDA"] = "OFF"
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        copy(self, "LICENSE", self.source_folder, f"{self.package_folder}/licenses")
        CMake(self).install()

    def package_info(self):
        self.cpp_info.set_property("cmake_find_mode", "none")  # consumers find reticleConfig.cmake in the package
        self.cpp_info.builddirs = ["lib/cmake/reticle"]
