"""The module paths of native-sparse-attention-triton, `model`, `module` and `ops`, implemented by `reticle.nsa`.

Programs change `native_sparse_attention` to `reticle.native_sparse_attention` in their imports. Models and modules are
ordinary torch modules of any floating dtype, on the CPU and, in builds with CUDA, on a GPU.
"""
