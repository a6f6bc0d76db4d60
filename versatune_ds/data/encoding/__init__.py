"""From a record to tokens: recognise its form, render the chat template, find the spans that bear loss."""
