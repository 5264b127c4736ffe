import { readdirSync, writeFileSync } from 'node:fs'
import { fileWriter } from 'hyparquet-writer'
import { ParquetWriter, schemaFromColumnData } from 'hyparquet-writer'
import { createFileStore } from './infra/store.ts'
import { readRows } from './infra/seals.ts'
import { preferenceSchema, type Preference } from './activities/records.ts'
const store = createFileStore('/work/main/.fspo/store')
const key = readdirSync('/work/main/.fspo/store/preferences').find((k)=>{try{return readdirSync('/work/main/.fspo/store/preferences/'+k).includes('_SUCCESS.json')}catch{return false}})
const base = await readRows(store, `preferences/${key}`, preferenceSchema)
console.log('base rows', base.length, 'json bytes/row', JSON.stringify(base.slice(0,1000)).length/1000)
const N = 500_000
// distinct texts for each copy of the base, as a bigger run would have
const rows: Preference[] = []
for (let c = 0; rows.length < N; c++) for (const r of base) { if (rows.length>=N) break; const t=(s:string)=>s&&s+` (${c})`; rows.push({...r,id:`${r.id}-${c}`,index:rows.length,user:`${r.user}-${c}`,first:`${r.first}-${c}`,second:`${r.second}-${c}`,firstText:t(r.firstText),secondText:t(r.secondText),chosen:t(r.chosen),rejected:t(r.rejected)}) }
const types: Record<string,any> = {}
for (const [k,v] of Object.entries(rows[0]!)) types[k] = typeof v==='string'?'STRING':typeof v==='boolean'?'BOOLEAN':k==='costUsd'?'DOUBLE':'INT64'
const col = (part: Preference[]) => Object.entries(types).map(([name,type])=>({name,type,nullable:false,data: type==='INT64'?BigInt64Array.from(part,(r:any)=>BigInt(r[name])):part.map((r:any)=>r[name])}))
for (const size of [500, 1000, 5000, 10_000, 50_000, 122_880, 500_000]) {
  const t=performance.now(), u=process.cpuUsage()
  const writer = fileWriter(`/tmp/pqs/rg-${size}.parquet`)
  const pw = new ParquetWriter({ writer, schema: schemaFromColumnData({columnData: col(rows.slice(0,1)) as any}) })
  for (let i=0;i<N;i+=size) pw.write({columnData: col(rows.slice(i,i+size)) as any, rowGroupSize: size})
  pw.finish()
  const v=process.cpuUsage(u)
  console.log(size, 'cpu s', ((v.user+v.system)/1e6).toFixed(1), 'wall', ((performance.now()-t)/1000).toFixed(1), 'rss', process.memoryUsage().rss>>20)
}
