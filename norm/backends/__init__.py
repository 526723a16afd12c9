"""How statistics are computed and exchanged. See README.md here."""
