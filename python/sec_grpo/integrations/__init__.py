"""Our parts inside other trainers; each module imports its trainer when it is imported itself."""
