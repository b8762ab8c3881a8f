"""The same model behind Canarium and behind other servers, measured with one client in one run."""
