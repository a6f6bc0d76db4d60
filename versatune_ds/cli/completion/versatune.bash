# Completion of versatune for bash. `versatune completion bash` writes this file; write it again after an update.
# TABLE

# Complete words that begin with $1 from the current word on.
_versatune_words() { COMPREPLY+=($(compgen -W "$1" -- "$current")); }

# Complete the keys of a recipe, one part at a time: mix -> mixture. -> mixture.policy=
_versatune_keys() {
  local key rest part last=
  _versatune_table @keys
  for key in $REPLY; do
    [[ $key == "$current"* ]] || continue
    rest=${key#"$current"}
    case $rest in *.*) part=$current${rest%%.*}. ;; *) part=$key= ;; esac
    [ "$part" = "$last" ] || COMPREPLY+=("$part")
    last=$part
  done
  compopt -o nospace 2>/dev/null
}

# Complete files, as the options of compgen say; their names may have blanks.
_versatune_files() {
  local IFS=$'\n'
  COMPREPLY+=($(compgen "$@" -- "$current"))
  compopt -o filenames 2>/dev/null
}

# Complete what a list of the table means.
_versatune_kinds() {
  local kind
  for kind in $1; do
    case $kind in
      @keys) _versatune_keys ;;
      @file) _versatune_files -f ;;
      @folder) _versatune_files -d ;;
      @recipe) _versatune_files -f -X '!*.y*ml'; _versatune_files -d ;;
      @*) ;;
      *) _versatune_words "$kind" ;;
    esac
  done
}

_versatune() {
  local line=${COMP_LINE:0:COMP_POINT} current=${COMP_LINE:0:COMP_POINT} command= option= number=1 word REPLY
  local -a words=()
  COMPREPLY=()
  # COMP_WORDS is split at =, which is part of key=value: split the line at blanks instead.
  read -ra words <<<"$line"
  case $line in *[[:blank:]]) current= ;; *) current=${words[${#words[@]} - 1]}; unset "words[${#words[@]}-1]" ;; esac
  # Find the subcommand, the option whose value comes next, and the number of the next argument.
  for word in "${words[@]}"; do
    if [ "${word##*/}" = versatune ]; then command= option= number=1
    elif [ -z "$command" ]; then command=$word
    elif [ -n "$option" ]; then option=
    elif [[ $word == -* ]]; then
      _versatune_table "$command $word"
      [ -z "$REPLY" ] || option=$word
    elif [[ $word != *=* ]]; then number=2
    fi
  done
  if [ -z "$command" ]; then
    _versatune_table ""
    _versatune_words "$REPLY"
  elif [ -n "$option" ]; then
    _versatune_table "$command $option"
    _versatune_kinds "$REPLY"
  elif [[ $current == -* ]]; then
    _versatune_table "$command"
    _versatune_words "$REPLY"
  elif [[ $current == *=* ]]; then
    _versatune_table "@key ${current%%=*}"
    local key=${current%%=*}=
    current=${current#*=}
    _versatune_kinds "$REPLY"
    # Where = separates words, as it does by default, bash replaces only what comes after it.
    [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${COMPREPLY[@]/#/$key}")
  else
    _versatune_table "$command $number"
    _versatune_kinds "$REPLY"
  fi
}
complete -F _versatune versatune
