"""What tests share: services, clusters, workers, buckets. No test lies here."""
