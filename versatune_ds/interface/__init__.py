"""The Python interface: what `import versatune_ds` offers (docs/python.md). The command line calls the same functions.

`versatune_ds/__init__.py` lists the public names and loads each from its module here at first use.
"""
