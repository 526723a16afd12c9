"""Jobs as values and the decisions about them. Pure: no clock, no database, no network."""
