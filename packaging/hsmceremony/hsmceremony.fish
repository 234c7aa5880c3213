# fish completion of hsmceremony

complete -c hsmceremony -n __fish_use_subcommand -f -a can -d 'How this HSM can wrap a key'
complete -c hsmceremony -n __fish_use_subcommand -f -a request -d "Make a request of AWS's own import files"
complete -c hsmceremony -n __fish_use_subcommand -f -a show -d 'Show a request, a wrapped key, import tokens or a log'
complete -c hsmceremony -n __fish_use_subcommand -f -a wrap -d 'The guided session'
complete -c hsmceremony -n __fish_use_subcommand -f -a version -d 'Print the version'
complete -c hsmceremony -n __fish_use_subcommand -f -a help -d 'List the commands'
complete -c hsmceremony -n '__fish_seen_subcommand_from can request show wrap' -o help -d 'List the flags'
complete -c hsmceremony -n '__fish_seen_subcommand_from can request wrap' -o c -r -d Configuration
complete -c hsmceremony -n '__fish_seen_subcommand_from request' -o from -r -d "AWS's files"
complete -c hsmceremony -n '__fish_seen_subcommand_from request' -o algorithm -x -a 'RSAES_OAEP_SHA_256 RSAES_OAEP_SHA_1 RSA_AES_KEY_WRAP_SHA_256 RSA_AES_KEY_WRAP_SHA_1' -d 'Wrapping algorithm'
complete -c hsmceremony -n '__fish_seen_subcommand_from request' -o valid-to -x -d 'Until when KMS takes it'
complete -c hsmceremony -n '__fish_seen_subcommand_from request' -o why -x -d 'What officers read'
complete -c hsmceremony -n '__fish_seen_subcommand_from request' -o out -r -d 'Where the request is written'
complete -c hsmceremony -n '__fish_seen_subcommand_from request' -o action -x -a 'import reimport restore' -d 'What the import does'
complete -c hsmceremony -n '__fish_seen_subcommand_from wrap' -o dry-run -d 'Wrap nothing'
complete -c hsmceremony -n '__fish_seen_subcommand_from wrap' -o trusted -d 'The security officer trusts the wrapping key'
complete -c hsmceremony -n '__fish_seen_subcommand_from wrap' -o so-pin-file -r -d "The security officer's PIN"
complete -c hsmceremony -n '__fish_seen_subcommand_from wrap' -o signature -r -d "An officer's signature"
