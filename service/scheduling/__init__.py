"""Which waiting jobs start now, which are preempted, and why the others wait. Pure: queue and hosts in, plan out."""
