"""The embedded Ray and MLflow: their start, their ports and their certain end."""
