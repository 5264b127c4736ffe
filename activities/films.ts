import { createRandom, seedOf } from '../infra/random.ts'

/** A film as the world knows it: facts only. */
export interface Film {
  title: string
  genre: string
  year: number
}

// Titles whose words carry sentiment of their own (Notorious, Clueless, …) are left out on purpose.
const table = `
Alien|horror|1979  Jaws|thriller|1975  Psycho|horror|1960  Vertigo|thriller|1958  Heat|crime|1995
Speed|action|1994  Gladiator|historical|2000  Titanic|romance|1997  Avatar|science fiction|2009
Casablanca|romance|1942  Fargo|crime|1996  Rocky|sports|1976  Amadeus|historical|1984
Gandhi|historical|1982  Memento|thriller|2000  Inception|science fiction|2010
Interstellar|science fiction|2014  Dunkirk|war|2017  Tenet|action|2020  Gravity|science fiction|2013
Arrival|science fiction|2016  Sicario|crime|2015  Dune|science fiction|2021  Whiplash|music|2014
Birdman|comedy|2014  Boyhood|drama|2014  Skyfall|action|2012  Goldfinger|action|1964
Metropolis|science fiction|1927  Nosferatu|horror|1922  Rashomon|crime|1950  Ikiru|drama|1952
Ran|historical|1985  Braveheart|historical|1995  Chinatown|crime|1974  Tootsie|comedy|1982
Manhattan|comedy|1979  Annie Hall|comedy|1977  Taxi Driver|drama|1976  Raging Bull|sports|1980
Goodfellas|crime|1990  Casino|crime|1995  Scarface|crime|1983  Predator|action|1987
Platoon|war|1986  Unforgiven|western|1992  Shrek|animation|2001  Ratatouille|animation|2007
Coco|animation|2017  Frozen|animation|2013  Moana|animation|2016  Bambi|animation|1942
Dumbo|animation|1941  Pinocchio|animation|1940  Aladdin|animation|1992  Tangled|animation|2010
Zootopia|animation|2016  Spotlight|drama|2015  Moonlight|drama|2016  Parasite|thriller|2019
Oldboy|thriller|2003  Akira|animation|1988  Paprika|animation|2006  Ponyo|animation|2008
Zodiac|crime|2007  Grease|musical|1978  Cabaret|musical|1972  Chicago|musical|2002
Patton|war|1970  Spartacus|historical|1960  Giant|drama|1956  Shane|western|1953
Laura|mystery|1944  Rebecca|mystery|1940  Charade|mystery|1963  Gilda|drama|1946
Hugo|adventure|2011  Logan|action|2017  Joker|drama|2019  Argo|thriller|2012
Lincoln|historical|2012  Beetlejuice|comedy|1988  Ghostbusters|comedy|1984  Gremlins|comedy|1984
Labyrinth|fantasy|1986  Willow|fantasy|1988  Twister|action|1996  Armageddon|action|1998
Solaris|science fiction|1972  Stalker|science fiction|1979  Persona|drama|1966
Robocop|action|1987  Batman|action|1989  Superman|action|1978  Mulan|animation|1998
Tarzan|animation|1999  Hercules|animation|1997  Blade Runner|science fiction|1982
Toy Story|animation|1995  Pulp Fiction|crime|1994  Donnie Darko|mystery|2001
`

/** The films reviews are asked for. */
export const films: readonly Film[] = table
  .trim()
  .split(/\n| {2}/)
  .map((entry) => {
    const [title, genre, year] = entry.split('|')
    return { title: title!, genre: genre!, year: Number(year) }
  })

const dayMs = 86_400_000

/**
 * A film for each question, split by seed before anything is generated: no film is in both lists.
 * With more questions than films each list repeats its own films in order. A date moves on among the
 * seen films, so that none comes back before all others had their day; the unseen ones stay.
 */
export function splitFilms(of: {
  seed: number
  seen: number
  unseen: number
  date?: string | undefined
}): { seen: Film[]; unseen: Film[] } {
  const order = createRandom(seedOf(of.seed, 'films')).shuffle(films)
  const share = Math.round((films.length * of.seen) / (of.seen + of.unseen))
  const border = Math.max(1, Math.min(films.length - 1, share))
  const days = of.date === undefined ? 0 : Math.round(Date.parse(of.date) / dayMs)
  return {
    seen: repeat(order.slice(0, border), { count: of.seen, from: days * of.seen }),
    unseen: repeat(order.slice(border), { count: of.unseen, from: 0 }),
  }
}

function repeat(list: Film[], { count, from }: { count: number; from: number }): Film[] {
  return Array.from({ length: count }, (_, i) => list[(from + i) % list.length]!)
}
