"""Profiles from published tables: fitted, held out, compared, and (those that may be) put into the package."""
