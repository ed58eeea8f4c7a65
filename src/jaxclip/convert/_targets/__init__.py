"""What weights go into: NNX and Linen models, as one tree of modules and variables."""
