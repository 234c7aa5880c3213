# bash completion of hsmceremony

_hsmceremony() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} flags=
	if [ "$COMP_CWORD" -eq 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W 'can request show wrap version help' -- "$cur")
		return
	fi
	case $prev in
	-action | --action)
		mapfile -t COMPREPLY < <(compgen -W 'import reimport restore' -- "$cur")
		return
		;;
	-algorithm | --algorithm)
		mapfile -t COMPREPLY < <(compgen -W 'RSAES_OAEP_SHA_256 RSAES_OAEP_SHA_1 RSA_AES_KEY_WRAP_SHA_256 RSA_AES_KEY_WRAP_SHA_1' -- "$cur")
		return
		;;
	-why | --why | -valid-to | --valid-to) return ;;
	esac
	case ${COMP_WORDS[1]} in
	can) flags='-c -help' ;;
	request) flags='-c -from -algorithm -valid-to -why -out -action -help' ;;
	show) flags='-help' ;;
	wrap) flags='-c -dry-run -trusted -so-pin-file -signature -help' ;;
	esac
	if [[ $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$cur")
	fi # else files: complete -o default
}
complete -o default -F _hsmceremony hsmceremony
