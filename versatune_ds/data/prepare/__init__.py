"""Tokenise every domain once into shards on disk, and count what happens to every record."""
