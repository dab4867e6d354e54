"""The layers, one family per file; each layer checks its documented rules and evaluates itself with torch."""
