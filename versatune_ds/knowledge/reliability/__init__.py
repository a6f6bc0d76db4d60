"""How far labels can be trusted: errors on texts of other sources, the parts of an interval, texts that are noise."""
