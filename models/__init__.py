"""What a model is: modalities, graphs, losses, imputers, DGMRec, LRMM, IRIS, encoders and the bundle that carries them.

Nothing here imports the trainer, the service or a web framework.
"""
