"""native-sparse-attention-triton's module paths: `model`, `module` and `ops`, on `reticle.nsa`.

Programs change `native_sparse_attention` to `reticle.native_sparse_attention` in their imports. Models and modules are ordinary
torch modules of any floating dtype: on the CPU, and where the build has CUDA, on a GPU.
"""
