"""Turn conversation files into batches of packed rows whose domain shares follow the mixture."""
