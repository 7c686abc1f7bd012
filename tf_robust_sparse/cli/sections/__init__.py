"""Groups of settings that several commands share, each with what it stands for."""
