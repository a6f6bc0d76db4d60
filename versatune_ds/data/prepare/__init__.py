"""Tokenise every domain once into shards on disk, with every record accounted for."""
