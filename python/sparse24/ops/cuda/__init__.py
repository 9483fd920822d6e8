"""The GPU side of the operators: cuSPARSELt, the small CUDA kernels, and which way a product goes."""
