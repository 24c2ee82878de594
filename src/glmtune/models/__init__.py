"""The model families that glmtune knows."""
