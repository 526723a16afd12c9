"""From the trained model to a certified one: population statistics, formats, certificate, registry."""
