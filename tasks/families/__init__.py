"""The families of background work: one folder each, found by scanning."""
