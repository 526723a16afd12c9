"""Which waiting jobs start now, which give way, and why the others wait. Pure: queue and hosts in, plan out."""
