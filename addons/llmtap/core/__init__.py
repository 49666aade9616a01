"""What every layer shares and which imports none of them: errors, records, endpoints, configuration models."""
