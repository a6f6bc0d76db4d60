"""Data files at addresses (`s3://`, `gs://`, `hf://`, `https://`): find them, and fetch each once into the cache."""
