"""What lies elsewhere: data sets, archives and published weights, fetched when asked for."""
