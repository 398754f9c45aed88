"""What is asked for, with the run that mails it; and what the mails say."""
