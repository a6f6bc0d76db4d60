#compdef versatune
# Completion of versatune for zsh. `versatune completion zsh` writes this file; write it again after an update.
# TABLE

# Complete the keys of a recipe, one part at a time: mix -> mixture. -> mixture.policy=
_versatune_keys() {
  local key rest
  local -aU parts
  _versatune_table @keys
  for key in ${=REPLY}; do
    [[ $key == "$current"* ]] || continue
    rest=${key#"$current"}
    case $rest in *.*) parts+=("$current${rest%%.*}.") ;; *) parts+=("$key=") ;; esac
  done
  compadd -S '' -- $parts
}

# Complete what a list of the table means.
_versatune_kinds() {
  local kind
  for kind in ${=1}; do
    case $kind in
      @keys) _versatune_keys ;;
      @file) _files ;;
      @folder) _files -/ ;;
      @recipe) _files -g '*.(yaml|yml)' ;;
      @*) ;;
      *) compadd -- $kind ;;
    esac
  done
}

_versatune() {
  local current=$words[CURRENT] command= option= number=1 word REPLY
  # Find the subcommand, the option whose value comes next, and the number of the next argument.
  for word in ${words[2,CURRENT-1]}; do
    if [[ -z $command ]]; then command=$word
    elif [[ -n $option ]]; then option=
    elif [[ $word == -* ]]; then
      _versatune_table "$command $word"
      [[ -z $REPLY ]] || option=$word
    elif [[ $word != *=* ]]; then number=2
    fi
  done
  if [[ -z $command ]]; then
    _versatune_table ""
    compadd -- ${=REPLY}
  elif [[ -n $option ]]; then
    _versatune_table "$command $option"
    _versatune_kinds "$REPLY"
  elif [[ $current == -* ]]; then
    _versatune_table "$command"
    compadd -- ${=REPLY}
  elif [[ $current == *=* ]]; then
    _versatune_table "@key ${current%%=*}"
    compset -P '*='
    current=${current#*=}
    _versatune_kinds "$REPLY"
  else
    _versatune_table "$command $number"
    _versatune_kinds "$REPLY"
  fi
}
if [[ $funcstack[1] == _versatune ]]; then _versatune "$@"; else compdef _versatune versatune; fi
