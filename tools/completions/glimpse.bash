# Bash completion for glimpse(1).

_glimpse() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
  local model='--model --new-modules --adapter --json --help'
  local run="$model --prune --threshold --max-keep --min-keep --anchors --reference-boxes
    --max-new-tokens --temperature --top-p --top-k --repetition-penalty --seed --system
    --min-pixels --max-pixels --dtype --device --threads"

  COMPREPLY=()
  case $prev in
    --model | --new-modules | --adapter) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); compopt -o filenames; return ;;
    --image | --mask-out | --scores-out) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); compopt -o filenames; return ;;
    --prune) mapfile -t COMPREPLY < <(compgen -W 'none glimpse random reference' -- "$cur"); return ;;
    --anchors) mapfile -t COMPREPLY < <(compgen -W 'tl tr bl br' -- "$cur"); return ;;
    --dtype) mapfile -t COMPREPLY < <(compgen -W 'float32 bfloat16' -- "$cur"); return ;;
    --device) mapfile -t COMPREPLY < <(compgen -W 'cpu cuda' -- "$cur"); return ;;
    --threshold | --max-keep | --min-keep | --reference-boxes | --max-new-tokens | --temperature | --top-p | --top-k | \
      --repetition-penalty | --seed | --system | --min-pixels | --max-pixels | --threads) return ;;
  esac

  local words
  if ((COMP_CWORD == 1)); then
    words='ask chat infer inspect --help --version'
  else
    case $command in
      ask | chat) words="$run --image --mask-out --scores-out" ;;
      infer) words=$run ;;
      inspect) words=$model ;;
    esac
  fi
  if [[ $cur == -* || $COMP_CWORD == 1 ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
  elif [[ $command == infer ]]; then
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    compopt -o filenames
  fi
}
complete -F _glimpse glimpse
