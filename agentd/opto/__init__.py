"""How to improve: OPTO problems and memory in, a proposal out."""
