"""The process of one model: the only place where PyTorch is imported. It knows nothing of the sidecar but the socket between them."""
