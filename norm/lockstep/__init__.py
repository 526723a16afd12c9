"""Forwards of one model that run in turns and wait for each other at given places. It may import norm's top level."""
