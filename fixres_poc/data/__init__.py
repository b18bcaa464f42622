"""Images: datasets by folder and by name, decoding, transforms, loading and leakage."""
