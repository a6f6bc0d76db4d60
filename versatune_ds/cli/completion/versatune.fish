# Completion of versatune for fish. `versatune completion fish` writes this file; write it again after an update.
# TABLE

# Print the keys of a recipe, one part at a time: mix -> mixture. -> mixture.policy=
function __versatune_keys
  for key in (__versatune_table @keys)
    string match -q -- "$argv[1]*" $key; or continue
    set -l rest (string sub -s (math (string length -- "$argv[1]") + 1) -- $key)
    set -l parts (string split -m 1 . -- $rest)
    if test (count $parts) -gt 1
      echo "$argv[1]$parts[1]."
    else
      echo "$key="
    end
  end | uniq
end

# Print what a list of the table means, for the word $argv[1].
function __versatune_kinds
  for kind in $argv[2..]
    switch $kind
      case @keys
        __versatune_keys $argv[1]
      case @file
        __fish_complete_suffix $argv[1] ''
      case @folder
        __fish_complete_directories $argv[1] ''
      case @recipe
        __fish_complete_suffix $argv[1] .yaml
      case '@*'
      case '*'
        echo $kind
    end
  end
end

function __versatune_complete
  set -l current (commandline -ct)
  set -l words (commandline -opc)
  set -l command
  set -l option
  set -l number 1
  # Find the subcommand, the option whose value comes next, and the number of the next argument.
  for word in $words[2..]
    if test -z "$command"
      set command $word
    else if test -n "$option"
      set option
    else if string match -q -- '-*' $word
      set -l values (__versatune_table "$command $word")
      test (count $values) -gt 0; and set option $word
    else if not string match -q -- '*=*' $word
      set number 2
    end
  end
  if test -z "$command"
    __versatune_table ''
  else if test -n "$option"
    __versatune_kinds "$current" (__versatune_table "$command $option")
  else if string match -q -- '-*' $current
    __versatune_table $command
  else if string match -q -- '*=*' $current
    set -l parts (string split -m 1 = -- $current)
    for value in (__versatune_kinds "$parts[2]" (__versatune_table "@key $parts[1]"))
      echo "$parts[1]=$value"
    end
  else
    __versatune_kinds "$current" (__versatune_table "$command $number")
  end
end
complete -c versatune -f -a '(__versatune_complete)'
