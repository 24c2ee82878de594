"""The model families that glmtune supports."""
