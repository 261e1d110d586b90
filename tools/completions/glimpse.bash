# Bash completion for glimpse(1).

_glimpse() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
  local model='--model --mmproj --new-modules --clip --adapter --dtype --weights --kv --kernels --device --threads --no-memory-check --download --revision --help'
  local run="$model --prune --keep --threshold --max-keep --min-keep --anchors
    --max-new-tokens --temperature --top-p --top-k --min-p --repetition-penalty --presence-penalty --frequency-penalty --seed --system
    --min-pixels --max-pixels --preprocessing"
  local video='--fps --frames --min-frames --max-frames --start --end --total-pixels'

  COMPREPLY=()
  case $prev in
    --model | -m | --new-modules | --clip | --adapter | --image-root | --data-root | --media-path | --cache-dir | --masks-out | --resume)
      mapfile -t COMPREPLY < <(compgen -d -- "$cur"); compopt -o filenames; return ;;
    --image | -i | --video | --config | -c | --data | --budget-from | --mask-out | --overlay-out | --scores-out | --out | -o | --mmproj | --api-key-file | --ssl-cert-file | --ssl-key-file)
      mapfile -t COMPREPLY < <(compgen -f -- "$cur"); compopt -o filenames; return ;;
    --task) mapfile -t COMPREPLY < <(compgen -f -W 'tiny viscot viscot_short vstar vstar_boxes refcoco' -- "$cur"); compopt -o filenames; return ;;
    --prune | --methods) mapfile -t COMPREPLY < <(compgen -W 'auto none glimpse least random reference divprune dart cdpruner visionzip vscan pyramiddrop' -- "$cur"); return ;;
    --anchors) mapfile -t COMPREPLY < <(compgen -W 'tl tr bl br' -- "$cur"); return ;;
    --dtype) mapfile -t COMPREPLY < <(compgen -W 'auto bf16 fp32' -- "$cur"); return ;;
    --weights) mapfile -t COMPREPLY < <(compgen -W 'auto bf16 int8 int4' -- "$cur"); return ;;
    --kv) mapfile -t COMPREPLY < <(compgen -W 'bf16 int8 int4' -- "$cur"); return ;;
    --kernels) mapfile -t COMPREPLY < <(compgen -W 'auto avx512 avx2 sse4 scalar' -- "$cur"); return ;;
    --group) mapfile -t COMPREPLY < <(compgen -W '32 64' -- "$cur"); return ;;
    --stage) mapfile -t COMPREPLY < <(compgen -W 'rl sft' -- "$cur"); return ;;
    --logprob) mapfile -t COMPREPLY < <(compgen -W 'published sampled' -- "$cur"); return ;;
    --pictures) mapfile -t COMPREPLY < <(compgen -W 'auto kitty sixel none' -- "$cur"); return ;;
    --reuse) mapfile -t COMPREPLY < <(compgen -W 'auto never always' -- "$cur"); return ;;
    --preprocessing) mapfile -t COMPREPLY < <(compgen -W 'own reference' -- "$cur"); return ;;
    --device) mapfile -t COMPREPLY < <(compgen -W 'cpu cuda' -- "$cur"); return ;;
    --keep | --threshold | --max-keep | --min-keep | --reference-boxes | --max-new-tokens | -n | --temperature | --top-p | \
      --top-k | --min-p | --repetition-penalty | --presence-penalty | --frequency-penalty | --seed | --system | --min-pixels | --max-pixels | --fps | --frames | --min-frames | --max-frames | --start | --end | --total-pixels | --threads | -t | --limit | \
      --batch | --kv-mb | --cache-mb | --cache-disk-gb | --max-shard-size | --budgets | --sets | --gallery | --judge-url | --judge-model | --judge-key-env | \
      --judge-jobs | --judge-tries | --judge-timeout | --score-command | --score-timeout | --held-out | --host | --port | --served-model-name | --preset | --api-key | --parallel | --queue | --max-images | --max-videos | --max-video-mb | --video-seconds | \
      --max-body-mb | --cors-origin | --grace | --revision) return ;;
  esac

  local words
  if ((COMP_CWORD == 1)); then
    words='ask chat infer serve eval inspect methods pull models merge quantize train tune --help --version'
  else
    case $command in
      ask) words="$run $video --image --video --reference-boxes --mask-out --overlay-out --scores-out --json --quiet --cache-dir --cache-disk-gb" ;;
      chat) words="$run $video --image --video --pictures --no-history --reuse --cache-mb --cache-dir --cache-disk-gb" ;;
      infer) words="$run $video --out --image-root --limit --batch --kv-mb --reuse --cache-mb --cache-dir --cache-disk-gb --keep-going --overwrite --budget-from" ;;
      serve) words="$model --host --port --served-model-name --preset --api-key --api-key-file --parallel --queue --kv-mb --cache-mb --cache-dir --cache-disk-gb --media-path --allow-domain --allow-private-addresses --fetch-seconds --max-images --max-videos --max-frames --max-video-mb --video-seconds --max-body-mb --max-new-tokens --cors-origin --ssl-cert-file --ssl-key-file --grace --quiet" ;;
      train) words="$video --config --data --out --resume --overwrite --download --revision --model --new-modules --image-root --dataset --samples --max-bad-share --epochs --batch --accumulation --max-steps --lr --warmup-ratio --weight-decay --beta1 --beta2 --eps --max-grad-norm --loc-weight --le-weight --dice-weight --bce-weight --distil-weight --teacher --cache-mb --cache-dir --cache-disk-gb --seed --dtype --device --threads --loader-threads --min-pixels --max-pixels --log-every --save-every --overlay-every --overlay-rows --save-dtype --help" ;;
      tune) words="$video --config --data --out --resume --overwrite --download --revision --model --image-root --dataset --samples --max-bad-share --epochs --batch --accumulation --max-steps --lr --warmup-ratio --weight-decay --beta1 --beta2 --eps --max-grad-norm --seed --dtype --device --threads --loader-threads --min-pixels --max-pixels --log-every --save-every --stage --adapter --lora-r --lora-alpha --lora-dropout --lora-targets --lora-first-layer --reward-weight --kd-weight --completions --max-new-tokens --top-k --logprob --cut-layer --max-seq-length --recompute --max-prompt --max-pruned-prompt --scores --judge-url --judge-model --judge-key-env --judge-jobs --judge-tries --judge-timeout --score-command --score-timeout --held-out --new-modules --cache-mb --cache-dir --cache-disk-gb --help" ;;
      eval) words="$model $video --out --task --methods --budgets --budget-from --data-root --image-root --sets --limit --overwrite --keep-going --gallery --masks-only --masks-out --judge-url --judge-model --judge-key-env --judge-jobs --judge-tries --judge-timeout --score-command --score-timeout --max-new-tokens --min-pixels --max-pixels --preprocessing" ;;
      inspect | methods) words="$model --json" ;;
      pull) words='--revision --base --no-base --help' ;;
      models) words='rm --json --help' ;;
      quantize) words='--mmproj --weights --group --max-shard-size --threads --download --revision --overwrite --help' ;;
      merge) words='--model --adapter --out --max-shard-size --download --revision --overwrite --help' ;;
    esac
  fi
  if [[ $cur == -* || $COMP_CWORD == 1 || ($command == models && $COMP_CWORD == 2) ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
  elif [[ $command == infer || $command == quantize ]]; then
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    compopt -o filenames
  fi
}
complete -F _glimpse glimpse
