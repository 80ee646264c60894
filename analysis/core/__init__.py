"""What every other folder uses: errors, paths, files, child processes, wording."""
