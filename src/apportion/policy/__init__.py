"""Everything that decides, one folder a family, one file a method; found by name through the catalogue."""
