"""What training and serving take, computed before either begins."""
