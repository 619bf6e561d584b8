"""The operators torch.ops.vae_fast.*: schemas, shape functions, autograd, and the dispatch to kernels."""
