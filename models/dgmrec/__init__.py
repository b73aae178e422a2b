"""DGMRec: top-N recommendation with generated modality features."""
