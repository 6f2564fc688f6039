"""The configuration: what a file may say (``schema``), reading it (``reader``), documenting it (``docs``)."""
