"""The Open Inference Protocol (`inference.GRPCInferenceService`, of Triton, KServe and MLServer) in terms of `onecontainer.api.ai.v1`."""
