"""What drivers that run models themselves share: the models of a service and their versions, images and tensors, calls, batches.

A driver brings the way from a ModelConfig to a `Session` that runs (`driver`); nothing here knows a runtime of models. It needs numpy
and Pillow, which such a driver requires; the base install has neither.
"""
