"""The embedded Ray and MLflow: how they start, their ports, and how they are certain to end."""
