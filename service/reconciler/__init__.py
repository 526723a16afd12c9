"""The reconciliation loop: drives every job towards its requested state."""
