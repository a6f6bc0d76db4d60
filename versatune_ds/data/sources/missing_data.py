"""The error of data that are not where the recipe says."""


class MissingDataError(ValueError):
    """A file or folder of the recipe's data is not there, perhaps because it was moved."""
