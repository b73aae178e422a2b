"""What a model is: modalities, graphs, losses, DGMRec, imputers, encoders and the bundle that carries them.

Nothing here imports the trainer, the service or a web framework.
"""
